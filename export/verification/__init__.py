"""Holding every artefact of a bundle against the model, on videos and texts.

inputs        what they are shown: somebody's videos and captions, or a small built-in set
runs          the reference, and what can run on this machine
differences   of tensors, gathered batch by batch
rankings      of score matrices: agreement and flips, near ties apart
judging       differences and tolerances to records
certificate   what is written: ``verification/certificate.json`` of a bundle
report, plots the same for people: ``verification/report.html``
verifying     all of it: ``verify_bundle``, ``verify_engines``
"""

from xclip_deploy.export.verification.certificate import Certificate, read_certificate
from xclip_deploy.export.verification.verifying import verify_bundle, verify_engines

__all__ = ["Certificate", "read_certificate", "verify_bundle", "verify_engines"]
