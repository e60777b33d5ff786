"""How good it is, in numbers: takes arrays, knows no tool and opens no file but the report it writes."""
