"""`make rehearsal`: README's commands at real size, against a Hub on this machine; see docs/rehearsal.md."""
