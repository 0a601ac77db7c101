import json
from dataclasses import FrozenInstanceError, replace

import pytest

from sfuda_bench.errors import UsageError
from sfuda_bench.scoring.profiles import PROFILES, Profile, get_profile


def test_the_two_default_profiles_have_their_published_rules() -> None:
    standard, cpr = get_profile("standard"), get_profile("cpr-2023")
    assert (standard.threshold, standard.smooth, standard.empty_policy) == (0.5, 0, "worst")
    assert (cpr.threshold, cpr.smooth, cpr.empty_policy) == (0.75, 1, "exclude")
    assert cpr.asd_definition == "directed"


def test_an_unknown_profile_is_a_usage_error_that_names_the_closest() -> None:
    with pytest.raises(UsageError, match="did you mean 'standard'") as caught:
        get_profile("standrad")
    assert caught.value.hint is not None
    assert "cpr-2023" in caught.value.hint


def test_a_name_close_to_nothing_gets_no_guess() -> None:
    with pytest.raises(UsageError) as caught:
        get_profile("qqq")
    assert "did you mean" not in caught.value.message


@pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)
def test_digest_fields_are_json_and_change_with_what_changes_numbers(profile: Profile) -> None:
    fields = profile.digest_fields()
    assert json.loads(json.dumps(fields)) == fields
    assert replace(profile, description="other words").digest_fields() == fields
    assert replace(profile, nsd_tolerance_share=0.05).digest_fields() != fields
    assert replace(profile, version=profile.version + 1).digest_fields() != fields


def test_a_profile_cannot_be_edited() -> None:
    with pytest.raises(FrozenInstanceError):
        get_profile("standard").threshold = 0.1  # type: ignore[misc]  # what is tested


def test_the_rules_of_dpl_are_those_of_cpr() -> None:
    """Same threshold, Dice and ASSD (mean of the directed means, empty masks dropped)."""
    dpl, cpr = get_profile("dpl-2021"), get_profile("cpr-2023")
    assert replace(dpl, name=cpr.name, description=cpr.description) == cpr


def test_stored_scores_keep_their_keys() -> None:
    """Rules that came later are left out of a profile's fields where they change nothing."""
    assert get_profile("standard").digest_fields() == {
        "name": "standard",
        "version": 1,
        "threshold": 0.5,
        "smooth": 0.0,
        "empty_policy": "worst",
        "asd_definition": "directed",
        "nsd_tolerance_share": 0.02,
    }
    assert set(get_profile("cpr-2023").digest_fields()) == set(
        get_profile("standard").digest_fields()
    )
    tuned = get_profile("beal-2019-drishti").digest_fields()
    assert (tuned["cup_threshold"], tuned["postprocessing"]) == (0.1, "beal")
