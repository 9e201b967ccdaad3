"""One solve from end to end, and streams of them."""
