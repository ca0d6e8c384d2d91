"""Notices: tells administrators by mail and webhook what needs them, when it begins and when it is over."""
