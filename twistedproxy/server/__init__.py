"""HTTP/1.1 without DICOM: listening, connections, uploads, responses, problems, CORS, ranges."""
