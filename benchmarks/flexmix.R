# EM by flexmix from a random partition: Rscript flexmix.R DATA.csv SEED
# Prints seconds, log-likelihood, iterations and whether the stopping rule was met.
suppressPackageStartupMessages(library(flexmix))

arguments <- commandArgs(trailingOnly = TRUE)
data <- read.csv(arguments[1])

fit <- function(iterations) {
  set.seed(as.integer(arguments[2]))
  control <- list(tolerance = 1e-8, iter.max = iterations, minprior = 0)
  flexmix(y ~ x, data = data, k = 3, model = FLXMRglm(family = "gaussian"),
          concomitant = FLXPmultinom(~ x), control = control)
}

invisible(fit(2))  # R compiles functions to byte code as they are used
seconds <- system.time(found <- fit(20000))[["elapsed"]]
cat(seconds, sprintf("%.6f", as.numeric(logLik(found))), found@iter, found@converged, "\n")
