from __future__ import annotations

import pytest

from shared.errors import CODES, InvalidImage
from shared.faces.rejects import REJECT_REASONS, Reject, RejectError, reject_for


def test_a_reason_outside_the_closed_list_is_a_bug() -> None:
    with pytest.raises(ValueError, match="unknown reject reason 'ugly'"):
        Reject("ugly", "found it so")


def test_every_error_code_of_an_image_is_a_reject_reason() -> None:
    for code in ("invalid_image", "image_too_large"):
        assert code in CODES
        assert code in REJECT_REASONS
        assert reject_for(InvalidImage("found it so", code=code)) == Reject(code, "found it so")


def test_an_error_with_a_finer_reason_keeps_it() -> None:
    error = RejectError("size_mismatch", "found more")
    assert (error.code, reject_for(error)) == ("invalid_image", Reject("size_mismatch", "found more"))
    assert RejectError("image_too_large", "found more").code == "image_too_large"
