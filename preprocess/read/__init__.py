"""Files of a raw folder to checked volumes."""
