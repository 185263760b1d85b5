"""Tests import their helpers beside them."""


