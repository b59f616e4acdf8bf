"""Reports for operators and programs: health, doctor, explain and listings."""
