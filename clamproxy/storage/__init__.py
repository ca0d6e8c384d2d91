"""What all data on disk rests on: the condition of the disk, sealed texts, files of records."""
