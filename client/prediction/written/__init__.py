"""What a prediction is written as: table, page, FHIR, DICOM."""
