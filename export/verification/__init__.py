"""Compare every graph and engine of a bundle with the model, on videos and texts.

inputs         videos and texts: the user's, or a small built-in set
runs           the reference, and the sessions that can run on this machine
measuring      the same inputs for all of them, batch by batch
differences    differences of tensors, gathered batch by batch
rankings       agreement and flips of rankings, with near ties counted apart
judging        records from differences and tolerances
certificate    ``verification/certificate.json`` of a bundle
report, plots  ``verification/report.html``, the certificate for people
verifying      the whole: ``verify_bundle``, ``verify_engines``
"""

from xclip_deploy.export.verification.certificate import Certificate, read_certificate
from xclip_deploy.export.verification.verifying import verify_bundle, verify_engines

__all__ = ["Certificate", "read_certificate", "verify_bundle", "verify_engines"]
