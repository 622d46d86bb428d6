"""What a simulation holds and costs, measured from outside: no container knows of it."""
