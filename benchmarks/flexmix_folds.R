# EM by flexmix from random partitions, each fold left out in turn:
#   Rscript flexmix_folds.R DATA.csv K STARTS TOLERANCE ITERATIONS GATE FOLDS
# DATA.csv has the columns fold, y and covariates; GATE is "softmax" or "constant"; FOLDS, as in
# 1,2,3, are left out in turn, and 0 leaves out none. Prints one line for each fit: fold, seed,
# CPU seconds, log-likelihood, iterations, whether the stopping rule was met; then, for each expert,
# the gate's intercept and slopes, the line's intercept and slopes, and sigma. Of a fit that fails
# or loses an expert it prints fold and seed alone.
suppressPackageStartupMessages(library(flexmix))

arguments <- commandArgs(trailingOnly = TRUE)
data <- read.csv(arguments[1])
k <- as.integer(arguments[2])
starts <- as.integer(arguments[3])
control <- list(tolerance = as.numeric(arguments[4]), iter.max = as.integer(arguments[5]),
                minprior = 0)
constant <- arguments[6] == "constant"
covariates <- setdiff(names(data), c("fold", "y"))
right <- paste(covariates, collapse = " + ")
gate <- if (constant) FLXPconstant() else FLXPmultinom(as.formula(paste("~", right)))

fit <- function(rows, control) {
  flexmix(as.formula(paste("y ~", right)), data = rows, k = k, control = control,
          model = FLXMRglm(family = "gaussian"), concomitant = gate)
}

# flexmix gives the coefficients of a gate that is fitted anew once EM has ended. Those of the gate
# that the log-likelihood belongs to follow from its probabilities, whose log odds are linear.
gate_parameters <- function(found, rows) {
  if (constant) return(rbind(log(found@prior), matrix(0, length(covariates), k)))
  experts <- matrix(parameters(found), ncol = k)
  design <- cbind(1, as.matrix(rows[covariates]))
  density <- sapply(seq_len(k), function(i) {
    dnorm(rows$y, design %*% experts[-nrow(experts), i], experts[nrow(experts), i])
  })
  odds <- log(found@posterior$unscaled / density)
  of_expert <- function(i) {
    clear <- is.finite(odds[, i] + odds[, 1]) & pmin(density[, i], density[, 1]) > 1e-290
    qr.solve(design[clear, ], odds[clear, i] - odds[clear, 1])
  }
  # too few such rows under a gate like a step: then the gate fitted anew, by which the plain
  # density differs from the log-likelihood reported, as the benchmark prints
  tryCatch(sapply(seq_len(k), of_expert),
           error = function(e) matrix(parameters(found, which = "concomitant"), ncol = k))
}

invisible(try(fit(data, list(iter.max = 2, minprior = 0)), silent = TRUE))  # compiles byte code
for (fold in as.integer(strsplit(arguments[7], ",")[[1]])) {
  rows <- data[data$fold != fold, ]
  for (seed in seq_len(starts)) {
    set.seed(seed)
    used <- system.time(found <- tryCatch(fit(rows, control), error = function(e) NULL))
    if (is.null(found) || found@k < k) {
      cat(fold, seed, "\n")
      next
    }
    experts <- matrix(parameters(found), ncol = k)
    values <- rbind(gate_parameters(found, rows), experts)
    cat(fold, seed, used[["user.self"]] + used[["sys.self"]], sprintf("%.17g", as.numeric(logLik(found))), found@iter,
        found@converged, sprintf("%.17g", values), "\n")
  }
}
