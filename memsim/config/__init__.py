"""Reading and checking YAML and JSON: keys, bases, near misses, and the files that memsim ships."""
