"""
Ties the agent of the process to the life of a web application, one module for each framework.

Nothing here is needed to take records: the first one starts the agent, and a process that ends
normally delivers what it holds. These helpers are for the rest: a mistake in the configuration that
shows when the app starts and not with the first attack, and servers that end their processes by a
signal, which nothing can follow.

Importing a module of this package imports its framework, and nothing else does.
"""
