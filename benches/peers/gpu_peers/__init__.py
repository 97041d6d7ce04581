"""What gpu.py is made of. Nothing of a peer is in here: their code is unpacked from wheels when it runs."""
