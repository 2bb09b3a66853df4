"""How many bits for each dimension does a flow reach, by the clock?"""
