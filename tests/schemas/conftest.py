"""How much do the property tests of the schemas try?"""

from hypothesis import HealthCheck, settings

# No deadline: a slow example on a busy machine is no fault. The strategies follow the schemas and are slow to draw.
settings.register_profile("lapse", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("lapse")
