"""`ucaptcha report`: what a batch has come to, as one page that needs no network, and as pictures."""
