"""Bridges to other packages, one file each, imported only when used."""
