"""What limits a training run: its loader, the copies, the tables, the net, the optimizer or the log; `trm profile`."""
