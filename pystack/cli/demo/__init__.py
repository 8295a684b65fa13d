"""`pystack demo`: a real client, a real server, and the stack between them."""
