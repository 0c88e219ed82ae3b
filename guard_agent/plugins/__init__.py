"""Built-in plugins. They are registered through entry points, like any other plugin."""
