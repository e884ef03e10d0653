"""The commands of `genderline`, grouped by what they are about."""
