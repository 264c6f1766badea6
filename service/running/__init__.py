"""Start and stop a service: the commands, the embedded Redis server and worker, and the demo."""
