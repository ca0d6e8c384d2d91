"""What all that is kept on a disk rests on: its condition, sealed texts, files of records."""
