"""What is kept of runs in MLflow. The only subpackage that imports mlflow."""
