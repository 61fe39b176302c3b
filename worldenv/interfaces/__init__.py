"""The five interfaces that everything else talks to: Observation, Policy, WorldModel, Reflector, Suite (and Robot).

And one that only training reads: TrueThings.
"""
