"""What holds for every test."""

from hypothesis import settings

# A machine that is busy with other things is slow now and then: that is no failure of an example.
settings.register_profile("headrace", deadline=None)
settings.load_profile("headrace")
