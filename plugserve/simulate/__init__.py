"""`plugserve simulate`: schedulers on a trace, through the real engine, against a model of the time that steps take."""
