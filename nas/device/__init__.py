"""What a network costs on a device: how it is run and timed, and tables of the blocks of a space measured there."""
