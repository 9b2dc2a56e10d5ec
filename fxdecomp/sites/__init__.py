"""Where a graph applies its Conv and Linear layers, in any dialect."""

from fxdecomp.sites.base import Call, Site
from fxdecomp.sites.survey import Survey, survey

__all__ = ["Call", "Site", "Survey", "survey"]
