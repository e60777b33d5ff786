"""Many products, one after another or many at a time: what is to be done, who does it, what came of it."""
