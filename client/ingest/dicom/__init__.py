"""DICOM folders to volumes: headers, geometry, pixels."""
