"""A broker on any machine: one that is named, Docker's, or Java's."""
