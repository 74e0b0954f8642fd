"""Sampling warmups and scoring them: the plain reference path, and the door to the fast one."""
