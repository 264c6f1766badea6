"""Starting and stopping: the command line, the embedded default, and the demo."""
