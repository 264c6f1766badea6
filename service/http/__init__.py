"""The HTTP face: the application, its routes and bodies, and who may call them."""
