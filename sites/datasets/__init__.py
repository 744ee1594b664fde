"""One data set a file: from its source folder to a federation folder."""
