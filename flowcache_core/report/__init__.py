"""What happened: engine events, the record made of them, and its text, picture and JSON."""
