"""Importing this module refuses a TRL or transformers that we do not run on; to be imported before they are."""

from fission_grpo.trl_versions import check_versions

check_versions()
