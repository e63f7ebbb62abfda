"""From the bytes of a file to the messages of its protobuf, as every reader would have them. Nothing in them is trusted."""
