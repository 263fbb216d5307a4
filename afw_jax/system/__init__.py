"""What differs between operating systems and disks: atomic files, file names, locks, terminals."""
