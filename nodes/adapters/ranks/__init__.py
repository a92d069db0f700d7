"""One run on several ranks of this machine: what of a host MODEL can go to them, and the run from here."""
