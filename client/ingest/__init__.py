"""Files to volumes: DICOM folders and NIfTI images become one `Volume` type or a stable refusal code."""
