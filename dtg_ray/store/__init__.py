"""Files, tables, arrays and receipts under one root, local or on S3."""
