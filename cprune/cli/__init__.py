"""What is typed: the commands' words and options.  Light: the work is imported when it is done."""
