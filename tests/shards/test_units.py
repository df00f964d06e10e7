"""Units of rain, and names that say rain."""

import pytest

from shards.sources.units import amount_factor, is_ambiguous, rate_factor, says_rain


@pytest.mark.parametrize(
    ("unit", "factor"),
    [
        *[("mm/h", 1), ("mm h-1", 1), ("kg m-2 h-1", 1), ("mm h**-1", 1), ("mm/min", 60), ("mm/5min", 12)],
        *[
            ("mm/10 min", 6),
            ("kg m-2/15min", 4),
            ("m/h", 1000),
            ("cm/6h", None),
            ("kg m-2 s-1", 3600),
            ("m s-1", 3.6e6),
        ],
        *[("mm", None), ("K", None), ("mm/0min", None), ("mm/", None), ("/h", None), ("dBZ/h", None), ("", None)],
    ],
)
def test_rates(unit, factor):
    expected = factor if unit != "cm/6h" else 10 / 6
    assert rate_factor(unit) == (None if expected is None else pytest.approx(expected))


def test_amounts_and_units_of_much_else():
    assert [amount_factor(unit) for unit in ("mm", "kg m-2", "m", "cm", "mm/h")] == [1, 1, 1000, 10, None]
    for unit in ("m", "cm", "m/s", "m/h", "cm/10min", "kg m-2"):
        assert is_ambiguous(unit)
    for unit in ("mm", "mm/h", "dBZ", "kg m-2/h"):
        assert not is_ambiguous(unit)


@pytest.mark.parametrize(
    "names",
    [
        *[("tp",), ("rain",), ("RAINNC",), ("Total precipitation",), ("pr",), ("rr_1h",), ("RR1",), ("Rainrate",)],
        *[("lwe_thickness_of_precipitation_amount",), ("x", "rainfall depth"), ("hourlyRain",), ("rainfall_flux",)],
    ],
)
def test_names_of_rain(names):
    assert says_rain(*names)


@pytest.mark.parametrize(
    "names",
    [
        *[("terrain height",), ("tcrw", "Total column rain water"), ("height of rain-snow line",), ("snow depth",)],
        *[("rain_top", "echo"), ("precipitation cloud top height",), ("rain fall velocity",), ("rain", "bright_line")],
        *[("Precipitation fall speed",), ("rain water path",), ("precipitable_water",), ("rain drop diameter",), ("",)],
    ],
)
def test_names_of_properties_of_rain(names):
    assert not says_rain(*names)
