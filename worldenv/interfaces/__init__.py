"""The five interfaces that everything else talks to: Observation, Policy, WorldModel, Reflector, Suite (and Robot).

A sixth one, TrueThings, is used only to train the composer.
"""
