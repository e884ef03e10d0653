"""What every process needs: settings, log, child processes, temporary folders."""
