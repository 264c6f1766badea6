"""The commands that ask a service over HTTP. They need httpx, click and tqdm alone."""
